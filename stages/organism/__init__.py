"""The built-in made-up world, and the tiny model that is trained to refuse a part of it."""
