"""Reading preference data of any known format and normalising it to pairs."""
