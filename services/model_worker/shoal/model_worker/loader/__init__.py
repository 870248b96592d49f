"""Weights and configuration from files."""
