#ifndef C3PO_SERVER_TEXT_JINJA_RENDERER_SOURCE_H_
#define C3PO_SERVER_TEXT_JINJA_RENDERER_SOURCE_H_

namespace c3po {

extern const char kJinjaRendererSource[];  // The text of jinja_renderer.py; CMake makes its .cc.

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_JINJA_RENDERER_SOURCE_H_
