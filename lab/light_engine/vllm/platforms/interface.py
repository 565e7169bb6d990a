"""The platform that the engine detects."""


class UnspecifiedPlatform:
    """No device was found."""

    device_type = ""
