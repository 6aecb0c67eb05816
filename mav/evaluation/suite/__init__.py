"""Everything that can be said of a folder of videos from any system, in one run (`mav evaluate suite`)."""
