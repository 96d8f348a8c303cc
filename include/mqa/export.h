#pragma once

// Marks what libmqa.so exports; everything else is hidden.
#define MQA_API __attribute__((visibility("default")))
