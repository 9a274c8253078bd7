"""The parts of the command `report`: read runs, group them, draw charts."""
