"""Methods that compute in fewer bits."""
