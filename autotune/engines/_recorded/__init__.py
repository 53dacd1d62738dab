"""Recorded launches of a real engine, and the surface that answers between them."""
