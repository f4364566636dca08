"""Read text: the lines of a photographed label, receipt or sign, as plain text."""
