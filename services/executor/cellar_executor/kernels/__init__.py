"""The process side: what makes an isolated kernel, talks to it, and judges from outside what became of a cell."""
