"""Recipes that train in minutes on two CPU cores."""
