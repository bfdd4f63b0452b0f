"""Grades, rewards, and an alarm for those that teach nothing."""
