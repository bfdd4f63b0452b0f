"""From graded trajectories to new weights: tensors live here."""
