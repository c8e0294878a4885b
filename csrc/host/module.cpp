// The extension module itself: importing it runs the registrations; it exports one function,
// build_info(), which tells what was compiled in. No torch and no pybind11 here, so it stays abi3.
#include <Python.h>

#include <exception>

#include "cpu/isa.h"

#ifndef SEEKERNEL_CUDA_VERSION
#define SEEKERNEL_CUDA_VERSION ""
#endif

namespace {

PyObject* build_info(PyObject*, PyObject*) {
  const char* isa = nullptr;
  try {
    isa = seekernel::cpu::isa_name(seekernel::cpu::isa());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return Py_BuildValue("{s:s,s:s,s:s}", "cpu_isa", isa, "cuda_version", SEEKERNEL_CUDA_VERSION,
                       "compiler", __VERSION__);
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "What was compiled in: dict of cpu_isa (in use), cuda_version ('' without CUDA), compiler."},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_C",
                      "Compiled ops of seekernel.",
                      -1,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
