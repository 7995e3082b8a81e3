"""From a layout and rules to a plan, to projectors, to the bytes of an edited model and its card."""
