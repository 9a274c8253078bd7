"""Image files: their formats, their pixels, and the cache of decoded images."""
