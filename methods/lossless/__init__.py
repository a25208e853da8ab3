"""Methods that answer as dense does: by another order of the work, or in fewer passes over the weights."""
