#pragma once

// From now on the first Ctrl-C only asks for an end; the second one ends the program at once.
void catch_interrupt();

// Whether there has been a Ctrl-C.
bool interrupted();
