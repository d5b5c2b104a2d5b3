"""Define the error that is raised where pairs cannot be assigned to steps."""


class PartitionError(ValueError):
    """A partition that was asked for cannot be made; the message says why and what to change."""
