"""What is measured, where it is kept, and what a person sees meanwhile."""
