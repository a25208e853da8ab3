"""Methods that write what dense writes, in fewer passes over the weights."""
