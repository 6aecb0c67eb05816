"""Blind human ratings: a frozen study and the page that asks."""
