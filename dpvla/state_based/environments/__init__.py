"""Simulators of the state-based track behind one interface; importing this loads none of them."""
