"""The human study: pairs of videos that are frozen, rated by people on a page, and reported."""
