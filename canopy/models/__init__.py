"""Networks that turn an image into heights: a frozen or trained encoder, a decoder, a bin head."""
