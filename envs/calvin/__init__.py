"""CALVIN: chains of five instructions and single tasks on its table, in MuJoCo or in the PyBullet environment."""
