"""Read preference data of any known format, and normalise it to pairs."""
