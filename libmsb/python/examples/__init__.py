"""Examples of the SDK. Each is a program; tests run them."""
