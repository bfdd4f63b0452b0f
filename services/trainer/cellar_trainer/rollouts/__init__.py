"""From tasks to graded trajectories: what the policy does, and what is kept of it."""
