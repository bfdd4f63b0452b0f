"""Who may speak, how much each may have, and whose turn it is."""
