"""An expert for each suite, which is told the state of the simulator."""
