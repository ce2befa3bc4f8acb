#pragma once
// Named by c10d's headers, used by none of their declarations.
