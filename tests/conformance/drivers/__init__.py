"""Drivers: what says a row of the table to the core, to qos2.win32 and to libqwave."""
