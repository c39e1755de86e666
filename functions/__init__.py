"""The functions that ship. They travel as text; the library never imports them."""
