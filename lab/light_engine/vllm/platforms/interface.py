"""What the engine takes itself to run on."""


class UnspecifiedPlatform:
    """No device was found."""

    device_type = ""
