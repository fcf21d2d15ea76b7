"""Many runs of one recipe that differ in a few keys: Ray Tune ends the worse ones early."""
