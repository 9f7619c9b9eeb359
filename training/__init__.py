"""Training of the demo voice: data, codec, checks. Apart from the engine, which never imports it."""
