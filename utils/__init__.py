"""Pure helpers. They know nothing of the method."""
