// Guards the registrations against a second copy of the library in one process.
#pragma once

namespace mqa {

// False in a copy of libmqa.so that finds the ops registered already: registering twice would abort
// the process. That copy warns, registers nothing, and the ops of the first one stay in use.
bool first_copy();

}  // namespace mqa
