"""What paints the pictures: the OpenGL back end, how its pixels are told, what simulators need to be imported."""
