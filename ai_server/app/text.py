"""Make text from outside valid for JSON and UTF-8."""


def well_formed(text: str) -> str:
    """Return the text with surrogate pairs joined and each lone surrogate replaced with U+FFFD.

    Surrogates, which UTF-8 cannot encode, come from engines that split answers inside a UTF-16 pair and from PDF fonts.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
