"""The laboratory: everything that stands in for a GPU, a cloud and a model hub, none of which are available here."""
