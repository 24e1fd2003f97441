// MathJax reads this before it starts. It typesets only what the Markdown extension arithmatex marks as a formula.
window.MathJax = {
  extensions: ["tex2jax.js"],
  jax: ["input/TeX", "output/SVG"],
  tex2jax: {
    inlineMath: [["\\(", "\\)"]],
    displayMath: [["\\[", "\\]"]],
    ignoreClass: ".*",
    processClass: "arithmatex",
  },
  TeX: { extensions: ["AMSmath.js", "AMSsymbols.js", "noErrors.js", "noUndefined.js"] },
  SVG: { font: "STIX-Web" },
  showMathMenu: false,
  messageStyle: "none",
};
