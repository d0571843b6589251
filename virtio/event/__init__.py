"""Notifiers, and the workers that poll or sleep on them."""
