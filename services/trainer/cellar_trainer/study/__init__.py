"""Experiments with a question: small, repeatable, and with their whole result written down."""
