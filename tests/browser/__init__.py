"""What people open, in a real browser. A package, so that its browser closes before other tests begin."""
