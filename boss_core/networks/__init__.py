"""Network architectures that give a velocity."""
