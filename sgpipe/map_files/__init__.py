"""Files of maps, for those that make maps and those that read them."""
