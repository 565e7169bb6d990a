"""Text from outside, made fit for JSON and UTF-8."""


def well_formed(text: str) -> str:
    """Join the halves of surrogate pairs, and put U+FFFD in the place of a half that has no other.

    Engines that cut their answers between UTF-16 halves send such, and fonts in PDFs do; UTF-8 cannot encode them.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
