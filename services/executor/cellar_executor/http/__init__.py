"""HTTP in and out: what is asked becomes a call of one use case, what it gives becomes an answer."""
