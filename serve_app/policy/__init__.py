"""Pure decisions: values in, values out, without Ray, a clock or I/O."""
