"""The report's pictures: drawn once with matplotlib, shown as inline SVG in the page and as PNG beside it."""
