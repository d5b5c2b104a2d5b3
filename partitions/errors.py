"""What goes wrong when pairs are assigned to steps."""


class PartitionError(ValueError):
    """The partition that was asked for cannot be made; the message says why and what to change."""
